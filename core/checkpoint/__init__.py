"""From files to checked arrays: safetensors, names, layouts, hub and demo."""
