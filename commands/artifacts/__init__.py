"""Model files: uploaded under their digest, inspected in a process of their own, stored once."""
