"""What a merge will do, decided from headers and configurations: nothing here reads a weight, or needs torch."""
