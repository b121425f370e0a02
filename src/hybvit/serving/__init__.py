"""A model behind a web page and a JSON API (`hybvit serve`)."""
