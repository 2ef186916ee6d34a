"""Stage two: heads trained side by side on one read of the features."""
