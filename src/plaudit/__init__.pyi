from plaudit import algo as algo
from plaudit.api.run import RewardModel as RewardModel
from plaudit.api.run import Run as Run
from plaudit.api.run import run as run
from plaudit.errors import UserError as UserError
from plaudit.view.chat import Policy as Policy

__version__: str
