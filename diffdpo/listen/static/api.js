// Requests to the study's server. Reports of what is played keep their order.

export class Refusal extends Error {
  constructor(status, body) {
    super(typeof body.detail === "string" ? body.detail : String(status));
    this.status = status;
    this.body = body;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A request that was refused for haste, or lost on the way, is made again: every request may come twice.
export async function call(path, body) {
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(`api/${path}`, body === undefined ? {} : {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
    } catch (error) {
      if (attempt >= 4) throw error;
      await pause(500 * 2 ** attempt);
      continue;
    }
    if (answer.status === 429 && attempt < 4) {
      await pause(1100);
      continue;
    }
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Refusal(answer.status, content);
    return content;
  }
}

let queue = Promise.resolve();

// One request after the other; resolves with the answer of this one.
export function inOrder(path, body) {
  const answer = queue.then(() => call(path, body));
  queue = answer.catch(() => {});
  return answer;
}
