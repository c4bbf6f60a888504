"""What another configuration would have sent: recorded history through the same pure decisions, on a simulated clock."""

from monitor.simulation.compare import Line, Status, compare, weeks
from monitor.simulation.past import Past, past_of
from monitor.simulation.remarks import remarks
from monitor.simulation.replay import Replay, Replayed

__all__ = ["Line", "Past", "Replay", "Replayed", "Status", "compare", "past_of", "remarks", "weeks"]
