"""From queued texts to finished vectors: scheduler (pure), pack, engine (the device thread)."""
