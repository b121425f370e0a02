"""What `hybvit doctor` looks at: the installed packages, the machine, and the places where files are kept."""
