"""Adapters: from a PEFT folder on disk to low-rank factors on the device, leased to texts."""
