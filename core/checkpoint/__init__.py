"""From files and hubs to checked arrays: formats, names, layouts, streaming."""
