"""The labelling service: people rank, compare and write replies in the browser, and no label is ever lost.

Its folders, each importing only those before it: db, kinds, queue, quality, transfer, web; people.py is what only web
and the commands need. It needs the extra: `pip install 'plaudit[label]'`. No module here imports torch.
"""
