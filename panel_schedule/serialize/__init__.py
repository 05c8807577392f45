"""How values and errors are checked, copied and made into bytes."""
