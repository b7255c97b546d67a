"""OME-XML: the source's own survives, without the places of its pixels and on demand without people."""

from ome_types import from_xml

from ngfftile import omexml
from ngfftile.geometry import Mpp, Size
from ngfftile.ngff import RGB, Channel

XML = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
 <Experimenter ID="Experimenter:0" FirstName="Jane" LastName="Doe"/>
 <Instrument ID="Instrument:0"><Detector ID="Detector:0" Model="Orca"/></Instrument>
 <Image ID="Image:0" Name="Doe, Jane"><Description>of Jane</Description>
  <ExperimenterRef ID="Experimenter:0"/>
  <Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="9" SizeY="8" SizeZ="1" SizeC="1" SizeT="1">
   <Channel ID="Channel:0:0" Name="DAPI" EmissionWavelength="461"/><TiffData IFD="0" PlaneCount="1"/>
   <Plane TheZ="0" TheC="0" TheT="0" ExposureTime="0.5"/>
  </Pixels></Image>
 <Image ID="Image:1" Name="other">
  <Pixels ID="Pixels:1" DimensionOrder="XYZCT" Type="uint8" SizeX="5" SizeY="5" SizeZ="1" SizeC="1" SizeT="1">
   <Channel ID="Channel:1:0"/><TiffData IFD="1"/></Pixels></Image>
</OME>"""


def test_the_sources_own_is_kept_but_for_the_places_of_pixels():
    kept = omexml.kept(XML, 0)
    ome = from_xml(kept)
    assert [image.name for image in ome.images] == ["Doe, Jane"]
    assert ome.images[0].pixels.metadata_only
    assert ome.images[0].pixels.channels[0].emission_wavelength == 461
    assert ome.images[0].pixels.planes[0].exposure_time == 0.5
    assert ome.instruments[0].detectors[0].model == "Orca"
    assert b"TiffData" not in kept
    assert [image.name for image in from_xml(omexml.kept(XML, 1)).images] == ["other"]


def test_people_are_left_out_on_demand():
    kept = omexml.kept(XML, 0, "slide-7")
    assert b"Jane" not in kept
    assert b"Doe" not in kept
    assert from_xml(kept).images[0].name == "slide-7"


def test_what_cannot_be_parsed_is_not_kept():
    assert omexml.kept("no xml", 0) is None
    assert omexml.kept('<!DOCTYPE x [<!ENTITY a "b">]><OME>&a;</OME>', 0) is None


def test_what_we_make_is_valid_and_says_all_that_is_known():
    channels = (Channel("DAPI", "0000FF", None, 461.0, 358.0), Channel("Cy5", "FF0000"))
    facts = omexml.Facts("s", Size(70, 60), channels, False, "uint16", Mpp(0.5, 0.25), 3, 2, 1.5, 10.0, 40.0)
    pixels = from_xml(omexml.made(facts)).images[0].pixels
    assert (pixels.size_x, pixels.size_y, pixels.size_z, pixels.size_c, pixels.size_t) == (70, 60, 3, 2, 2)
    assert (pixels.physical_size_x, pixels.physical_size_y, pixels.physical_size_z) == (0.5, 0.25, 1.5)
    assert pixels.time_increment == 10.0
    assert [c.name for c in pixels.channels] == ["DAPI", "Cy5"]
    assert (pixels.channels[0].emission_wavelength, pixels.channels[0].excitation_wavelength) == (461, 358)
    rgb = omexml.Facts("s", Size(7, 6), RGB, True, "uint8", None, acquired="2020-01-02T03:04:05")
    assert from_xml(omexml.made(rgb)).images[0].pixels.channels[0].samples_per_pixel == 3
