"""What a page shows: reactive views and components."""
