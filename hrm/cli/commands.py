"""Imports every subcommand, which registers itself on the app. Each keeps heavy imports inside its function."""

