"""A reference's own networks, rewritten, as files: UNet, temporal decoder and encoder."""
