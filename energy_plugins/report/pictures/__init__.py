"""What a report can show, each picture a frozen value that a page and a PNG are drawn from."""
