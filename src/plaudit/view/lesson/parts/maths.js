// The formulas, in the glossary's names; each is tested against plaudit.algo to 1e-6.

const sum = (xs) => xs.reduce((a, b) => a + b, 0);
const mean = (xs) => sum(xs) / xs.length;
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
/** −log σ(x), finite for any x. */
const softplus = (x) => Math.max(0, x) + Math.log1p(Math.exp(-Math.abs(x)));

const maths = {
  /** L_CLIP = min(r·Â, clip(r, 1−ε, 1+ε)·Â). */
  clip(ratio, advantage, range) {
    const unclipped = ratio * advantage;
    const clipped = clamp(ratio, 1 - range, 1 + range) * advantage;
    return { unclipped, clipped, l_clip: Math.min(unclipped, clipped) };
  },

  /** δ_t = R_t + γ·V(s_{t+1}) − V(s_t), Â_t = δ_t + γλ·Â_{t+1}; after the last token V is 0. */
  gae(rewards, values, gamma, lam) {
    const advantages = Array(rewards.length).fill(0);
    let next = 0;
    for (let t = rewards.length - 1; t >= 0; t -= 1) {
      const delta = rewards[t] + gamma * (values[t + 1] ?? 0) - values[t];
      next = delta + gamma * lam * next;
      advantages[t] = next;
    }
    return advantages;
  },

  /** k1 = log π − log π_ref, k2 = k1²/2, k3 = e^(−k1) − 1 + k1. */
  kl(logprob, ref) {
    const k1 = logprob - ref;
    return { k1, k2: (k1 * k1) / 2, k3: Math.expm1(-k1) + k1 };
  },

  /** R_t = −β·kl_t, and the score on the last token. */
  rewards(score, kl, beta) {
    return kl.map((one, t) => -beta * one + (t === kl.length - 1 ? score : 0));
  },

  /** L = L_CLIP − c1·L_VF + c2·S, L_VF = (V − return)²; the loss is −L. */
  objective(l_clip, value, target, entropy, c1, c2) {
    const l_vf = (value - target) ** 2;
    const objective = l_clip - c1 * l_vf + c2 * entropy;
    return { l_vf, objective, loss: -objective };
  },

  /** Probabilities of logits over a temperature, and their entropy in nats. */
  entropy(logits, temperature) {
    const top = Math.max(...logits);
    const weights = logits.map((x) => Math.exp((x - top) / temperature));
    const probabilities = weights.map((w) => w / sum(weights));
    return { probabilities, entropy: -sum(probabilities.map((p) => (p > 0 ? p * Math.log(p) : 0))) };
  },

  /** Mean 0 and std 1. */
  whiten(xs) {
    const centre = mean(xs);
    const std = Math.sqrt(mean(xs.map((x) => (x - centre) ** 2)));
    return xs.map((x) => (std > 0 ? (x - centre) / std : 0));
  },

  /** P(w beats l) = σ(r_w − r_l), loss −log of it. */
  bradleyTerry(winner, loser) {
    return { probability: sigmoid(winner - loser), loss: softplus(loser - winner) };
  },

  /** A ranking, best first: the mean loss of its pairs, so that each ranking weighs 1. */
  ranking(scores) {
    const pairs = [];
    for (let i = 0; i < scores.length; i += 1) for (let j = i + 1; j < scores.length; j += 1) pairs.push({ i, j, ...maths.bradleyTerry(scores[i], scores[j]) });
    return { pairs, loss: mean(pairs.map((pair) => pair.loss)) };
  },

  /** ΔW = (α/r)·B·A, B [rows][r], A [r][columns]. */
  lora(b, a, alpha) {
    const rank = a.length;
    return b.map((row) => a[0].map((_, column) => (alpha / rank) * sum(row.map((x, k) => x * a[k][column]))));
  },

  /** Gao et al. 2023 for RL: R(d) = d·(α − β·log d) over d = √KL; its top is at d = e^(α/β − 1). */
  gaming(d, alpha, beta) {
    return d > 0 ? d * (alpha - beta * Math.log(d)) : 0;
  },
};
