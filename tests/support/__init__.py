"""Small real things that several tests build on."""
