"""WHERE THE PLANES MEET: open, share, close. The only room that calls kernel and registry in one breath."""
