"""Search: variants of one recipe, and which of them no other beats."""
