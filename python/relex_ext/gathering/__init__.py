"""Checkpoints in pieces, as the ranks of a trainer wrote them, made whole as safetensors.

inert       what is put in the place of the classes that a pickle names
allowing    what torch may make of a file
metadata    what a torch distributed checkpoint says it holds → distributed reads it
ranks       verl's files, one for each rank
naming      the trainer's names of weights → the model's
whole       one step's folder, written and published
run         all of them: relex_ext.gather
"""
