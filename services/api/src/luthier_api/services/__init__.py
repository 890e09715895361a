"""What the routes do, whatever the dialect: one service for each kind of thing."""
