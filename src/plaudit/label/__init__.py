"""The labelling service: people rank replies in the browser, and no label is ever lost.

Everything but `label/cli.py` needs the extra: `pip install 'plaudit[label]'`. No module here imports torch.
"""
