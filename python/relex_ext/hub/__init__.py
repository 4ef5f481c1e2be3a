"""The Hugging Face Hub, in and out, all through huggingface_hub."""
