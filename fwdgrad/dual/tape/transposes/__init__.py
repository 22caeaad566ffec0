"""The transposes of linear basic operations, by subject, a line each where the mathematics is a line."""
