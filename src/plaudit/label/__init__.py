"""The labelling service: people rank replies in the browser; what they said feeds the reward stage."""
