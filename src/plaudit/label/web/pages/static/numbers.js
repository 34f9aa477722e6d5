// Numbers as words: one way to write each kind, with a dash for what is unknown.

export const DASH = "–";

export function percent(share) {
  return share === null || share === undefined ? DASH : `${Math.round(100 * share)} %`;
}

export function decimal(value, digits = 2) {
  return value === null || value === undefined ? DASH : value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
}

export function whole(value) {
  return value.toLocaleString("en");
}

/** "62 % (50 to 73, n = 40)" of a share with its interval. */
export function shareInWords(share) {
  if (!share) return "unknown";
  return `${percent(share.share)} (${Math.round(100 * share.low)} to ${Math.round(100 * share.high)}, n = ${whole(share.n)})`;
}

export function seconds(value) {
  if (value === null || value === undefined) return DASH;
  return value < 90 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
}

/** "24 Nov 2025, 16:00" of a time of the server's: days and times of the dashboard are UTC, as those of exports. */
export function inUtc(seconds) {
  return new Date(1000 * seconds).toLocaleString([], { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" });
}
