// Stores read with Viv's loader over HTTP, as Viv and Avivator do: node viv.mjs FOLDER '{"a.ome.zarr": {}}'
import { loadOmeZarr } from "@vivjs/loaders";
import { answer, digest } from "./common.mjs";

/** A channel of a level put together from all the tiles that deck.gl asks for: it knows the size of level 0 alone. */
async function stitch(source, level, selection, [fullHeight, fullWidth]) {
  const [height, width] = source.shape.slice(-2);
  const side = source.tileSize;
  let picture = null;
  let beyond = 0;
  for (let y = 0; y < fullHeight / (side * 2 ** level); y++) {
    for (let x = 0; x < fullWidth / (side * 2 ** level); x++) {
      try {
        const tile = await source.getTile({ x, y, selection });
        picture ??= new tile.data.constructor(width * height);
        for (let row = 0; row < tile.height; row++) {
          const line = tile.data.subarray(row * tile.width, (row + 1) * tile.width);
          picture.set(line, (y * side + row) * width + x * side);
        }
      } catch (error) {
        source.onTileError(error); // throws, but for a tile past the level's border, which the viewer leaves out
        beyond += 1;
      }
    }
  }
  return { picture, beyond };
}

await answer(async (name, _, server) => {
  const { data, metadata } = await loadOmeZarr(`${server.url}/${name}`, { type: "multiscales" });
  const full = data[0].shape.slice(-2);
  const levels = [];
  for (const [level, source] of data.entries()) {
    const rasters = [];
    const stitched = [];
    let beyond = 0;
    for (let c = 0; c < source.shape[0]; c++) {
      rasters.push((await source.getRaster({ selection: { c } })).data);
      const found = await stitch(source, level, { c }, full);
      stitched.push(found.picture);
      beyond += found.beyond;
    }
    const { labels, shape, dtype, tileSize } = source;
    levels.push({ labels, shape, dtype, tileSize, sha256: digest(...rasters), tiles: digest(...stitched), beyond });
  }
  return { ome: metadata, levels };
});
