/**
 * An answer that goes on when its page is loaded again, or its connection breaks.
 *
 * The page and `/api/chat` come from one origin; the route streams a model's answer through Penstock, which serves
 * `/_penstock/` beside it. All that survives the reload is the stream's address, which the tab keeps: the answer itself
 * is in the relay's log, and comes again from its beginning.
 */

import { resume, stream } from "/_penstock/client.js";

const KEY = "answer";
const $ = (id) => document.getElementById(id);
let reading = null;

function callbacks() {
  const answer = $("answer");
  answer.textContent = "";
  return {
    onEvent({ data }) {
      if (data === "[DONE]") return;
      const { choices, error } = JSON.parse(data);
      if (error) throw new Error(error.message);
      answer.append(choices[0]?.delta.content ?? "");
    },
    onState(state, { reason, error }) {
      $("state").textContent = {
        connecting: "…",
        open: "Answering. Reload the page if you like.",
        waiting: "The connection broke. Coming back …",
        ended: reason === "error" ? error.message : `The answer is ${reason}.`,
      }[state];
      $("stop").disabled = state === "ended";
    },
  };
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  reading?.close();
  reading = stream("/api/chat", { body: { question: $("question").value }, key: KEY, ...callbacks() });
});

$("stop").addEventListener("click", () => reading?.stop());

reading = resume(KEY, callbacks());
