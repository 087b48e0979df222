"""Preferences: from pairs of which one is better to a utility of any song.

Features are frozen and come from elsewhere; `bradley_terry` fits weights to pairs, `heads` makes an ensemble of
them that says how sure it is, and a scorer applies it. Nothing here knows where pairs come from: shuffled seconds,
damages and people's votes are fitted alike.
"""
