"""Stories that end the same with the kit and with a real worker on real servers."""
