"""How good labels are: agreement, reliability, alarms, and the numbers of the dashboard."""
