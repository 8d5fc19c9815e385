// Embeds the texts on stdin with OpenAI's client, as its users do, and prints what came.
import OpenAI, { NotFoundError } from "openai";
import { readFileSync } from "node:fs";

const [url, model] = process.argv.slice(2);
const input = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const rows = (reply) => reply.data.map((item) => item.embedding);
const told = {
  usual: rows(await client.embeddings.create({ model, input })),
  float: rows(await client.embeddings.create({ model, input, encoding_format: "float" })),
};
try {
  await client.embeddings.create({ model: "nope", input });
} catch (error) {
  if (!(error instanceof NotFoundError)) throw error;
  told.missing = [error.status, error.code];
}
console.log(JSON.stringify(told));
