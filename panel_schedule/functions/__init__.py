"""What an author declares, and what runs of it."""
