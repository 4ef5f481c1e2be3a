"""Folders that only look like a model's weights: each is told what it is and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from folders import INDEX, SINGLE, Raw, Tensors, file_bytes, raw, write_index, write_model
from relex_ext.checkpoints import open_checkpoint
from relex_ext.errors import InputError
from relex_ext.headers import header_of

BF16 = raw(np.arange(6, dtype=np.uint16), "BF16", (2, 3))
FOUR_BF16 = raw(np.arange(4, dtype=np.uint16), "BF16")
FOUR_I32 = raw(np.arange(4, dtype=np.uint32), "I32")
W: Tensors = {"a.weight": BF16}


def place(folder: Path, names: Iterable[str]) -> None:
    """Empty files, and folders where a name ends with a slash."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.touch()


def refusal(folder: Path) -> str:
    with pytest.raises(InputError, match=f"^{folder}") as caught:
        open_checkpoint(folder)
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{folder}: ")


ADAPTER = "a PEFT (LoRA) adapter; merge it first"
DELTA = "what changed since another step"
DCP = "a torch distributed checkpoint in {place}; gather it: {gather}"
VERL = "the rank shards of verl's FSDP in {place}; gather them: {gather}"
PARTS = "parts of tensors, one file for each rank"
WRITING = "files still being written"
PICKLED = "pickled weights"

BESIDE = {
    "adapter_config.json": ADAPTER,
    "adapter_model.safetensors": ADAPTER,
    "adapter_model.bin": ADAPTER,
    "sparse_update_manifest.json": DELTA,
    "sparse_update_patch.safetensors": DELTA,
    "delta_metadata.json": DELTA,
    "delta_sparse.safetensors.zst": DELTA,
}

INSTEAD = {
    "delta.safetensors": DELTA,
    "delta_000012.safetensors": DELTA,
    "step_12.patch.safetensors": DELTA,
    "sparse_manifest.json": DELTA,
    "model.wdelta": DELTA,
    "pytorch_model_fsdp_0/": "the rank shards of accelerate's FSDP, or none yet",
    "pytorch_model_fsdp_0_rank1.bin": "the rank shards of accelerate's FSDP, or none yet",
    "shard-00001-model-00001-of-00001.safetensors": PARTS,
    "sharded/": PARTS,
    "mp_rank_00/": "the rank shards of Megatron's own format; save in torch_dist and export with",
    "mp_rank_00_model_states.pt": "the rank shards of DeepSpeed; convert them: python /",
    "zero_to_fp32.py": "the rank shards of DeepSpeed; convert them: python /",
    "consolidated.00.pth": "weights in their maker's own format",
    "consolidated.safetensors": "weights in their maker's own format",
    "model-Q4_K_M.gguf": "GGUF, usually quantised",
    "model-00001-of-00002.safetensors": "shards without the index that is written last",
    "model.safetensors.incomplete": WRITING,
    "model-00001-of-00002.safetensors.tmp": WRITING,
    "model.safetensors.part": WRITING,
    "pytorch_model.bin": PICKLED,
    "model.pt": PICKLED,
    "last.ckpt": PICKLED,
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_not_all_of_a_step_even_beside_weights(tmp_path: Path, name: str) -> None:
    place(tmp_path, [name])
    expected = f"expected all weights of a model, found {name}: {BESIDE[name]}"
    assert refusal(tmp_path).startswith(expected)
    write_model(tmp_path, W)
    assert refusal(tmp_path).startswith(expected)
    inside = write_model(tmp_path / "step" / "actor" / "huggingface", W)
    place(inside, [name])
    with pytest.raises(InputError, match=f"^{inside}: expected all weights of a model"):
        open_checkpoint(tmp_path / "step")


@pytest.mark.parametrize("name", INSTEAD)
def test_what_lies_where_weights_are_expected(tmp_path: Path, name: str) -> None:
    place(tmp_path, [name, "config.json", "optimizer.pt", "data.pt", "rng_state_0.pth"])
    message = refusal(tmp_path)
    assert message.startswith(f"expected {SINGLE} or {INDEX}, found ")
    assert INSTEAD[name] in message
    assert name.rstrip("/").rpartition("/")[2] in message
    write_model(tmp_path, W)
    assert open_checkpoint(tmp_path).tensors["a.weight"].nbytes == 12


IN_PIECES = {
    ".metadata": DCP,
    "pytorch_model_fsdp_0/.metadata": DCP,
    "policy/weights/.metadata": DCP,
    "trainer/.metadata": DCP,
    "model_world_size_8_rank_3.pt": VERL,
    "actor/model_world_size_8_rank_3.pt": VERL,
    "policy/model_world_size_8_rank_3.pt": VERL,
    "actor/__0_0.distcp": "in {place} without .metadata, which is written last; finish the saving",
}


@pytest.mark.parametrize("name", IN_PIECES)
@pytest.mark.parametrize("step", ["my runs/global_step_12", "my base"])
def test_checkpoints_in_pieces(tmp_path: Path, step: str, name: str) -> None:
    """The command is for the whole run, and for one folder where that is all there is."""
    folder = tmp_path / step
    place(folder, [name])
    source, out = folder.parent, f"{folder.parent}-gathered"
    if step == "my base":
        source, out = f"0={folder}", f"{folder}-gathered"
    gather = f"relex gather '{source}' --out '{out}'"
    expected = IN_PIECES[name].format(place=f"'{(folder / name).parent}'", gather=gather)
    assert expected in refusal(folder)


def test_checkpoints_that_other_programs_convert(tmp_path: Path) -> None:
    """Each with the command that does it."""
    megatron = tmp_path / "iter_0000012"
    place(megatron, [".metadata", "common.pt", "metadata.json", "__0_0.distcp"])
    bridge = "python examples/conversion/convert_checkpoints.py export --hf-model BASE "
    assert refusal(megatron).endswith(
        f"found a distributed checkpoint of Megatron; export with Megatron Bridge: {bridge}"
        f"--megatron-path {megatron} --hf-path {megatron}-hf"
    )
    verl = tmp_path / "global_step_12"
    place(verl, ["actor/dist_ckpt/.metadata", "actor/dist_ckpt/common.pt"])
    assert refusal(verl).endswith(
        "merge it: python -m verl.model_merger merge --backend megatron --local_dir "
        f"{verl}/actor --target_dir {verl}-hf"
    )
    trainer = tmp_path / "checkpoint-12"
    place(trainer, ["zero_to_fp32.py", "latest", "global_step12/mp_rank_00_model_states.pt"])
    assert refusal(trainer).endswith(
        f"python {trainer}/zero_to_fp32.py {trainer} {trainer}-hf --safe_serialization"
    )
    inside = trainer / "global_step12"
    assert refusal(inside).endswith(
        f"python {trainer}/zero_to_fp32.py {trainer} {inside}-hf --safe_serialization --tag "
        "global_step12"
    )


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert refusal(tmp_path) == (
        f"expected {SINGLE} or {INDEX}, found pickled weights (pytorch_model.bin); load them where "
        "you trust them and save_pretrained(..., safe_serialization=True)"
    )


def test_the_state_of_a_trainer_is_no_weights(tmp_path: Path) -> None:
    place(tmp_path, ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "data.pt", "scaler.pt"])
    assert refusal(tmp_path) == f"expected {SINGLE} or {INDEX}, found neither"


# ---- what a file says of itself ------------------------------------------------------------------


@pytest.mark.parametrize(
    "noted",
    [
        {"version": "000001", "base_version": "000000", "delta_encoding": "xor"},  # slime
        {"base_step": 3},
        {"sparse": True},
    ],
)
def test_an_index_of_changes(tmp_path: Path, noted: dict[str, object]) -> None:
    write_model(tmp_path, W, [["a.weight"]])
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({**index, "metadata": noted}))
    with pytest.raises(InputError, match=f"^{tmp_path / INDEX}: expected weights, .*{DELTA}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("sparse", ["True", "False"])
def test_a_header_of_changes(tmp_path: Path, sparse: str) -> None:
    """TRL says of both, the changes and the whole, which they are."""
    metadata = {"format": "sparse_weight_patch", "version": "1", "sparse": sparse}
    (tmp_path / SINGLE).write_bytes(file_bytes(W, metadata=metadata))
    if sparse == "True":
        assert DELTA in refusal(tmp_path)
    else:
        assert open_checkpoint(tmp_path).tensors["a.weight"].shape == (2, 3)


@pytest.mark.parametrize(("places", "values"), [(".indices", ".values"), (".idx", ".val")])
def test_tensors_that_are_changes(tmp_path: Path, places: str, values: str) -> None:
    """As prime-rl, grail and TRL name them."""
    found: dict[str, Raw] = {f"a.weight{places}": FOUR_I32, f"a.weight{values}": FOUR_BF16}
    (tmp_path / SINGLE).write_bytes(file_bytes(found))
    assert DELTA in refusal(tmp_path)
    del found[f"a.weight{values}"]
    (tmp_path / SINGLE).write_bytes(file_bytes({**found, "b": BF16}))
    assert len(open_checkpoint(tmp_path).tensors) == 2


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.weight", "U8"),  # bitsandbytes, and slime's compressed changes
        ("a.weight", "I8"),
        ("a.qweight", "I32"),  # GPTQ, AWQ
        ("a.weight_packed", "I32"),  # compressed-tensors
        ("a.down_proj_blocks", "U8"),  # MXFP4
    ],
)
def test_quantised_weights(tmp_path: Path, name: str, dtype: str) -> None:
    """Integers are carried over as they are; these would be a forecast that never moves."""
    size = {"U8": 1, "I8": 1, "I32": 4}[dtype]
    found = {**W, name: Raw(dtype, (8 // size,), bytes(8))}
    (tmp_path / SINGLE).write_bytes(file_bytes(found))
    message = f"tensor {name}: expected weights, found quantised weights; save them as float32"
    with pytest.raises(InputError, match=f"^{tmp_path}/{SINGLE}: {message}"):
        open_checkpoint(tmp_path)


# ---- torch's HuggingFaceStorageWriter ------------------------------------------------------------


def test_whole_tensors_that_torch_has_saved(tmp_path: Path) -> None:
    """A single rank's save notes offsets, too: zeros."""
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    writer = HuggingFaceStorageWriter(str(tmp_path), fqn_to_index_mapping={"a.weight": 1, "b": 2})
    with pytest.warns(UserWarning, match="assuming the intent is to save in a single process"):
        dcp.save(state, storage_writer=writer, no_dist=True)
    assert "DCP_SHARDING_INFO" in header_of(tmp_path / "model-00001-of-00002.safetensors").metadata
    found = open_checkpoint(tmp_path)
    assert {name: entry.shape for name, entry in found.tensors.items()} == {
        "a.weight": (2, 3),
        "b": (4,),
    }


def test_parts_of_tensors_that_torch_has_saved(tmp_path: Path) -> None:
    """The second rank's rows, under whatever name; the first one's, by theirs."""
    for begin, name in ((2, "model-00001.safetensors"), (0, "shard-00001-model.safetensors")):
        info = {"a.weight": {"saved_offsets": [begin, 0]}}
        metadata = {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"}
        (tmp_path / name).write_bytes(file_bytes(W, metadata=metadata))
        write_index(tmp_path, {"a.weight": name})
        with pytest.raises(InputError, match=f"{name}: expected whole tensors, found {PARTS}"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize("noted", ["", "[]", '{"a.weight": 3}', '{"a.weight": {}}', "[" * 9999])
def test_parts_that_say_nothing_of_themselves(tmp_path: Path, noted: str) -> None:
    (tmp_path / SINGLE).write_bytes(file_bytes(W, metadata={"DCP_SHARDING_INFO": noted}))
    with pytest.raises(InputError, match=f"{SINGLE}: DCP_SHARDING_INFO: expected offsets"):
        open_checkpoint(tmp_path)
