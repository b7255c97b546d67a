// Stores read with zarrita, from files and over HTTP: node zarrita.mjs FOLDER '{"a.ome.zarr": {"y": [0, 9], "x": [0, 9]}}'
import { join } from "node:path";
import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";
import { answer, digest } from "./common.mjs";

async function read(store, region) {
  const group = await zarr.open(zarr.root(store), { kind: "group" });
  const ome = group.attrs.ome ?? group.attrs;
  const levels = [];
  for (const { path } of ome.multiscales[0].datasets) {
    const array = await zarr.open(group.resolve(path), { kind: "array" });
    const { data, shape } = await zarr.get(array);
    levels.push({ shape, dtype: array.dtype, names: array.dimensionNames ?? null, sha256: digest(data) });
  }
  const finest = await zarr.open(group.resolve(ome.multiscales[0].datasets[0].path), { kind: "array" });
  const cut = await zarr.get(finest, [null, zarr.slice(...region.y), zarr.slice(...region.x)]);
  return { ome, levels, region: { shape: cut.shape, sha256: digest(cut.data) } };
}

await answer(async (name, region, server, folder) => {
  const file = await read(new FileSystemStore(join(folder, name)), region);
  const before = server.seen.parts;
  const http = await read(new zarr.FetchStore(`${server.url}/${name}`), region);
  return { file, http, parts: server.seen.parts - before };
});
