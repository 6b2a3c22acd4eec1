"""Any-second views: what a secondary keeps of the bytes that it overwrites, and how an earlier instant is made of it.

frames.py    the bytes of the ring: pure
window.py    the ring: append, give up the oldest, find its end again after any stop
recorder.py  reads and stores what a batch of records will overwrite, before they are applied
instants.py  which instant a time, marker or seq means
putback.py   takes an image of now back to an instant
"""
