// A form that was refused comes back as the answer to a POST. Make it an ordinary page of the history: going back or
// reloading must not ask whether to send the password again.
history.replaceState(null, "", location.href);
