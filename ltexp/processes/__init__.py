"""The processes of a run: one a device, and which of them failed first."""
