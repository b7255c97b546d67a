// What both readers need: a file server that honours Range, as an object store does, and digests of pixels.
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { join, normalize } from "node:path";

/** SHA-256 of typed arrays, one after the other. */
export function digest(...arrays) {
  const hash = createHash("sha256");
  for (const { buffer, byteOffset, byteLength } of arrays) hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  return hash.digest("hex");
}

/** First and last byte that a Range header asks for; null without one, undefined past the end. RFC 9110, 14.1.2. */
function span(header, size) {
  const found = /^bytes=(?:(\d+)-(\d*)|-(\d+))$/.exec(header ?? "");
  if (!found) return null;
  const [, first, last, suffix] = found;
  const start = suffix ? Math.max(0, size - Number(suffix)) : Number(first);
  const end = last ? Math.min(Number(last), size - 1) : size - 1;
  return start <= end ? { start, end } : undefined;
}

/** Serve a folder on 127.0.0.1: its url, how many answers were whole objects, parts or "not found", and its end. */
export async function serve(folder) {
  const seen = { whole: 0, parts: 0, missing: 0 };
  const server = createServer(async (request, response) => {
    const path = join(folder, normalize(decodeURIComponent(new URL(request.url, "http://x").pathname)));
    const about = await stat(path).catch(() => null);
    if (!about?.isFile()) {
      seen.missing += 1;
      return response.writeHead(404).end();
    }
    const part = span(request.headers.range, about.size);
    if (part === undefined) return response.writeHead(416, { "content-range": `bytes */${about.size}` }).end();
    const { start, end } = part ?? { start: 0, end: about.size - 1 };
    const headers = { "accept-ranges": "bytes", "content-length": end - start + 1 };
    if (part) headers["content-range"] = `bytes ${start}-${end}/${about.size}`;
    response.writeHead(part ? 206 : 200, headers);
    if (request.method === "HEAD" || about.size === 0) return response.end();
    seen[part ? "parts" : "whole"] += 1;
    return createReadStream(path, { start, end }).pipe(response);
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { url: `http://127.0.0.1:${server.address().port}`, seen, close };
}

/** Run `read(name, region, server)` for each store asked for on the command line, and print what it gives as JSON. */
export async function answer(read) {
  const [folder, asked] = process.argv.slice(2);
  const server = await serve(folder);
  const results = {};
  for (const [name, region] of Object.entries(JSON.parse(asked))) results[name] = await read(name, region, server, folder);
  server.close();
  console.log(JSON.stringify(results));
}
