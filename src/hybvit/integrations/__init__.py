"""Models of hybvit in other libraries, by those libraries' own conventions; a module for each, imported when it is wanted."""
