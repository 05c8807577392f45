"""Who is told, outside of the server, that tasks fail, are late, and are well again."""
