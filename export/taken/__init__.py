"""What is in a written file, layer by layer: read from the file, whatever was asked for."""
