"""A pipeline file as stages, and the stages as processes of their own."""
