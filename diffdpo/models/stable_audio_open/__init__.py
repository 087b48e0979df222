"""Stable Audio Open: a v-prediction network of stereo sound up to 47 s, and the adapter around it."""
