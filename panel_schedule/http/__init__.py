"""What other programs ask of a server over HTTP: health, JSON, metrics."""
