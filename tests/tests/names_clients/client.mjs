// Clients that Node has: `client.mjs CLIENT URL` prints what is there, or complains and ends with 1.

import https from "node:https";

const clients = {
  fetch: async (url) => (await fetch(url)).text(),
  https: (url) =>
    new Promise((resolve, reject) => {
      const request = https.get(url, (answer) => {
        let text = "";
        answer.on("data", (piece) => (text += piece));
        answer.on("end", () => resolve(text));
      });
      request.on("error", reject);
    }),
};

const [client, url] = process.argv.slice(2);
try {
  console.log(await clients[client](url));
} catch (error) {
  for (let what = error; what; what = what.cause) console.error(`${what.code ?? what.name}: ${what.message}`);
  process.exit(1);
}
