"""The fleet protocol: topics, messages, tensors and their bytes. Pure: no socket, no file, no clock."""
