// Not compiled here: no Android SDK on the build machine. Reads golden.json of a golden bundle, of
// which an app takes along: its `canary`, the files that this names, and the files to try.

import java.io.File
import kotlin.math.log10
import org.json.JSONArray
import org.json.JSONObject

/** What of a file to call for photos of one size, as `functions` in manifest.json has it too. */
class Method(val name: String, val height: Int, val width: Int)

class Canary(private val bundle: File) {
    /** others: what to call for photos of other sizes, each of which is tried too. */
    class Try(val file: String, val target: String, val unit: String, val atLeastDb: Double, val others: List<Method>)

    /** A photo of one size, and what is expected of it at every `step`-th pixel. */
    private inner class Sized(about: JSONObject) {
        val photo = pixels(about, "photo")
        val expected = pixels(about, "expected")
        private val shape = about.getJSONObject("photo").getJSONArray("shape") // [1, 3, height, width]
        val height = shape.getInt(2)
        val width = shape.getInt(3)
    }

    private val about = JSONObject(File(bundle, "golden.json").readText()).getJSONObject("canary")
    private val step = about.getInt("step")
    private val usual = Sized(about)
    private val sizes = objects(about.getJSONArray("sizes")).map { Sized(it) }
    val position = about.getInt("position")
    val tries = objects(about.getJSONArray("tries")).map {
        Try(
            it.getString("file"), it.getString("target"), it.getString("unit"), it.getDouble("at_least_db"),
            objects(it.getJSONArray("others")).map { other -> methodOf(other) },
        )
    }

    /**
     * The first file of a target that computes on this phone what it should, at each of its sizes;
     * null where none does. stackOf is given the method for another size, null for the usual one.
     */
    fun <Model> firstThatWorks(
        target: String, load: (File, Try) -> Model, stackOf: (Model, FloatArray, Int, Method?) -> FloatArray,
    ): Model? = tries.filter { it.target == target }.firstNotNullOfOrNull { next ->
        fun works(model: Model, sized: Sized, method: Method?): Boolean =
            decibels(stackOf(model, sized.photo, position, method), sized) >= next.atLeastDb
        runCatching { load(File(bundle, next.file), next) }.getOrNull()?.takeIf { model ->
            runCatching {
                works(model, usual, null) && next.others.all { works(model, at(it), it) }
            }.getOrDefault(false)
        }
    }

    private fun at(method: Method): Sized =
        sizes.first { it.height == method.height && it.width == method.width }

    /** PSNR of a stack at every `step`-th pixel, down and across; NaN, which passes nothing, of NaN. */
    private fun decibels(stack: FloatArray, sized: Sized): Double {
        val (height, width) = sized.height to sized.width
        var error = 0.0
        var n = 0
        for (plane in 0 until stack.size / (height * width))
            for (y in 0 until height step step)
                for (x in 0 until width step step) {
                    val off = (stack[(plane * height + y) * width + x] - sized.expected[n++]).toDouble()
                    error += off * off
                }
        return 10 * log10(4 * n / error)
    }

    private fun objects(all: JSONArray): List<JSONObject> = List(all.length()) { all.getJSONObject(it) }

    private fun methodOf(about: JSONObject): Method {
        val size = about.getJSONArray("size") // [height, width]
        return Method(about.getString("name"), size.getInt(0), size.getInt(1))
    }

    private fun pixels(about: JSONObject, name: String): FloatArray {
        val bytes = File(bundle, about.getJSONObject(name).getString("file")).readBytes()
        return FloatArray(bytes.size) { (bytes[it].toInt() and 255) / 127.5f - 1 }
    }
}
