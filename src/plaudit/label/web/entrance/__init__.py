"""The way in: forms, invitations, the organisation's own sign-in, and the start page of several projects."""
