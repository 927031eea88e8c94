"""One module per recipe: what is trained and how, as data that imports nothing of the libraries under test."""
